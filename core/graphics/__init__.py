"""The graphics cards of this computer, asked of the system and of drivers, and the build of torch that suits one.

No torch is needed to know them: the question is most often why the torch that is here cannot use one.
"""
