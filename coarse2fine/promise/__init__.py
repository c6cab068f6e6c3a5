"""What a calibrated kit promises: how sure it is that little is missed, and for which cases that holds."""
