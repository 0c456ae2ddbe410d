"""What is known of published checkpoints, and how their files come here; needs no torch."""

from robustguide.cards.catalogue import Card, card, card_of_file, cards, folder, needed, present

__all__ = ["Card", "card", "card_of_file", "cards", "folder", "needed", "present"]
