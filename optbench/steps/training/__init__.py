"""What the training steps share.

In: a checkpoint, texts, a teacher or pairs. Out: a trained checkpoint and its loss; an interrupted training resumes.
"""
