"""Accuracy of a judge: how often an independent classifier finds the class that was asked for.

Some call it classification precision. The judge must not be a classifier that guided the samples.
"""

from robustguide.metrics.agreement import ClassAccuracy
from robustguide.metrics.protocol import Protocol

CLASS_ACCURACY = Protocol(
    name="class-accuracy",
    network="judge",
    resize="none",
    measures=(ClassAccuracy("logits"),),
    source="a classifier of your own, in the file that its training exported",
)
