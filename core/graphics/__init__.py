"""Detection of graphics cards without torch, from the system and drivers, and the choice of a build of torch for them.

It works without torch because the usual question is why the installed torch cannot use a card.
"""
