"""The report on the data: what people's votes and the pairs made of them look like, before a round learns from them."""
