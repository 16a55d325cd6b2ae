"""What else a user could take: the same machine and the same update, in plain PyTorch and in Pyro, each at its best."""
