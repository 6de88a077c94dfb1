"""What returns a number for a whole data set: detection mAP, PR curves, verification, identification."""
