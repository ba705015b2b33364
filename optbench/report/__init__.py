"""Reports: records for people.

In: records, verdicts, comparisons. Out: tables, the model card, the HTML page and its figures. Nothing is measured here.
"""
