"""The lab: a miniature town with by-laws, where the truth about harm is known exactly."""
