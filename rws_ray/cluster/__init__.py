"""Ray: the session, training on workers, and likelihoods shared out over them. All of Ray lives here."""
