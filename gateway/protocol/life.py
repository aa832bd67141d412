"""One life of a namespace's store: which positions it can still vouch for."""

from dataclasses import dataclass

from gateway.protocol.position import Position


@dataclass(frozen=True, slots=True)
class Cut:
    """Positions between two lives of the store: what stood there may be lost."""

    recovered: Position
    resumed: Position

    def holds(self, position: Position) -> bool:
        """Tell whether `position` lies strictly inside."""
        return self.recovered < position < self.resumed


@dataclass(frozen=True, slots=True)
class Life:
    """What the store says of a namespace: `generation` is another with every cut and floor."""

    epoch: str
    generation: str
    clock: Position
    floor: Position
    last: Position
    cuts: tuple[Cut, ...] = ()

    def vouches_for(self, position: Position) -> bool:
        """Tell whether nothing after `position` was lost with an earlier life or dropped name.

        Whether a channel's ring still reaches back to it is the ring's to say.
        """
        return position >= self.floor and not any(cut.holds(position) for cut in self.cuts)

    def same_history(self, other: "Life") -> bool:
        """Tell whether both speak of the same epoch, cuts and floor."""
        return self.epoch == other.epoch and self.generation == other.generation
