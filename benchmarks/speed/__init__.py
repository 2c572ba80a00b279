"""What an edit costs against what a user would do instead, measured side by side in one run; see `__main__`."""
