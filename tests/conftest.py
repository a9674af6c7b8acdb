from hypothesis import settings

# No deadlines: a slow machine is not a wrong answer. The rest is as it was, the same examples every time in CI.
settings.register_profile("vitrail", parent=settings(), deadline=None)
settings.load_profile("vitrail")
