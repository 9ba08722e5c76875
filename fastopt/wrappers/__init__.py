"""What stands around an optimizer: averages, accumulation, loss scaling."""
