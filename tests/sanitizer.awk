# Prints, out of sanitizer reports, each leak of ours and anything that is not a leak; fails if there
# was one. Called by `make test-sanitize` on the reports of the Python tests.
#
# A leak is ours if our extension is in its stack. A Python object that we lost has only the
# interpreter there, as its frames cannot be followed; in Python 3.11, which leaks nothing itself,
# that counts too. Later versions leak their interned strings. Not counted is the interpreter's raw
# memory, which our extension never asks for: the state of a thread that outlives its interpreter,
# and the notes of tracemalloc. Nor is what other extensions lose: those under pyOpenSSL do.

function judge() {
    ours = text ~ /\/_becket\./
    lost = text ~ /\/(libpython|bin\/python)3\.11/ && text !~ /PyMem_(Debug)?Raw|_tracemalloc\.c/
    others = text ~ /_cffi_backend|_rust\.abi3/
    if (leak && (ours || (lost && !others))) {
        print text
        found++
    }
    leak = 0
    text = ""
}

/^(Direct|Indirect) leak of / { judge(); leak = 1 }
/^$/ || /^SUMMARY: / { judge() }
leak { text = text $0 "\n" }

/ERROR: AddressSanitizer|runtime error: / { other = FILENAME; found++ }
FILENAME == other { print }

END {
    judge()
    if (found)
        print "sanitizers: " found " to mend"
    exit found > 0
}
