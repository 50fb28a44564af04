"""The dialog to find, judge, download and remove models."""
