"""Cards: processes of one host that each hold the same executable, on devices of their own."""

from cambrian.engine.cards.cards import Cards as Cards, CardsEnded as CardsEnded
