"""Reports of records.

In: records, verdicts, comparisons. Out: tables, the model card, the HTML page and its figures.
"""
