"""What several commands share."""

from tokvid.io.files import shipped

OF_RECIPES = ("train", "tokenize", "plan")  # commands that take a recipe's fields, too
SHIPPED = shipped()
