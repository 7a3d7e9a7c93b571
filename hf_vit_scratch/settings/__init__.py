"""What a run is told: flags, recipes, and the checks that they have to pass."""
