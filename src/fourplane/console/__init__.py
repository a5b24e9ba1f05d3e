"""The pages a person looks at: the case studies' diagrams with the running system inside."""
