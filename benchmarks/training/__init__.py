"""How the stand-in models are trained."""
