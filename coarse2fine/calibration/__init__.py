"""From labelled cases and two models to a kit: a threshold with a guarantee, and what it was measured on."""
