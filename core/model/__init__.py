"""From a model's files to a module tree with its weights placed by a plan."""
