"""Classifiers of small images: time to a target, what each lever gives, search for better fields."""
