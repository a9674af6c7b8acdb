from hypothesis import settings

# No deadlines: a slow machine is not a wrong answer. In CI the examples are still the same every time.
settings.register_profile("vitrail", parent=settings(), deadline=None)
settings.load_profile("vitrail")
