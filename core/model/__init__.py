"""From a model folder to a module tree with weights placed by plan."""
