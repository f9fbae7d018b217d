"""The data contract, the sources that fill it, the simulated marketplace, and pictures."""
