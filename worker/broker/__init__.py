"""Everything that speaks to a broker: intakes, lanes, and passive questions."""
