"""The lab: a small world that we own, in which adapters and the cure can be trained and measured on any machine."""
