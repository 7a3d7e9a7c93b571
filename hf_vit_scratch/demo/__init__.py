"""The page on which one draws a digit and sees what a model makes of it, and the Space that serves it on the Hub."""
