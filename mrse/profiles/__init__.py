"""User and item profiles, training examples and evaluation requests, split by time (`build_profiles`)."""
