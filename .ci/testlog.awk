# Reads the output of go test -v and prints what matters of it: go's own lines,
# what belongs to a test that failed, and whatever belongs to no test, such as a
# panic. Writes "TestName: reason" of each skipped test to the file in skips.

# Lines belong to the test that was named last.
/^=== (RUN|NAME|CONT|PAUSE) / {
	current = $3
	next
}

/^ *--- (PASS|FAIL|SKIP): / {
	name = $3
	if ($2 == "FAIL:") printf "%s\n%s", $0, text[name]
	if ($2 == "SKIP:") print name ": " reason[name] >skips
	delete text[name]
	current = ""
	next
}

# The end of a package. What is left over is of tests that never came to their
# end.
/^(ok|FAIL|\?|---) *\t/ {
	for (name in text) {
		printf "unfinished: %s\n%s", name, text[name]
		delete text[name]
	}
	if ($1 == "FAIL" && shuffle != "") print "-test.shuffle " shuffle
	current = shuffle = ""
	print
	next
}

/^(panic: |fatal error: )/ { current = "" }

# One of these comes per package, beside what "ok" says.
/^(PASS|FAIL)$/ || /^coverage: / { next }
/^-test\.shuffle / { shuffle = $2; next }

current != "" {
	text[current] = text[current] $0 "\n"
	if ($0 ~ /^ *[^ ]*\.go:[0-9]+: /) {
		reason[current] = $0
		sub(/^ */, "", reason[current])
	}
	next
}

{ print }
