"""Federated training: configuration, algorithms, MAN, engines and the round loop."""
