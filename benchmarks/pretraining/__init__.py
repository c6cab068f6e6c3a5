"""The studies of pretraining: what each trains and measures, and how its rows become gains and a page."""
