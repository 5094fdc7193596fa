"""The networks of the zoo benchmark, and OpenVINO on their namesakes."""
