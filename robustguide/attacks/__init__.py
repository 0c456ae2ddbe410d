"""Attacks on noisy images: balls to stay in, projected gradient ascent, and what YAML can name."""

from robustguide.attacks.attack import PGD, Attack, Radius, SignalRadius
from robustguide.attacks.balls import Ball, L2Ball, LinfBall
from robustguide.attacks.pgd import pgd

__all__ = ["PGD", "Attack", "Ball", "L2Ball", "LinfBall", "Radius", "SignalRadius", "pgd"]
