"""Reading of X, in any form, into a source of images or rows."""
