"""What a run costs on devices that are not at hand: memory, seconds, tokens and disk, by first principles."""
