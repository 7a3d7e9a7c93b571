"""The model card of a run, and the way of its folder to the Hub."""
