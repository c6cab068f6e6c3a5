"""Which regions are segmented, and who decides that."""
