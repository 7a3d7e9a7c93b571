"""The settings of a run: flags, recipes, and checks of their values."""
