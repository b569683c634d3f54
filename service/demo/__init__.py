"""The whole loop as a story on one machine: scripted users with a hidden taste teach the policy what they like."""
