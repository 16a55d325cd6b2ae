"""A page on this machine where a person draws, dreams, completes and compares: what it shows, and how it is served."""
