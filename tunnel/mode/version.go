package mode

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a Kubernetes version as far as the decision needs it.
type Version struct {
	Major, Minor, Patch uint32
	Pre                 string // pre-release, without its hyphen: "alpha.1"
}

// ParseVersion reads "1.21.3", also with a leading v, with fewer numbers ("1.21" is
// 1.21.0), with a pre-release ("1.21.0-rc.1") and with build metadata
// ("1.21.3+vendor.1"), which it drops. The minor version of some servers is "21+", so a
// plus with nothing behind it is accepted too; Gardener would not. Anything else,
// white space included, is an error that quotes the text.
func ParseVersion(s string) (Version, error) {
	bad := func(why string) (Version, error) {
		return Version{}, fmt.Errorf("%.60q is not a Kubernetes version: %s", s, why)
	}
	if s == "" {
		return bad("it is empty")
	}
	rest := strings.TrimPrefix(s, "v")
	rest, build, hasBuild := strings.Cut(rest, "+")
	if hasBuild && build != "" && !identifiers(build) {
		return bad("malformed build metadata")
	}
	numbers, pre, hasPre := strings.Cut(rest, "-")
	if hasPre && !identifiers(pre) {
		return bad("malformed pre-release")
	}
	fields := strings.Split(numbers, ".")
	if len(fields) > 3 {
		return bad("more than three numbers")
	}
	v := Version{Pre: pre}
	for i, to := range []*uint32{&v.Major, &v.Minor, &v.Patch}[:len(fields)] {
		if strings.Trim(fields[i], "0123456789") != "" || fields[i] == "" {
			return bad("want numbers between dots")
		}
		n, err := strconv.ParseUint(fields[i], 10, 32)
		if err != nil {
			return bad("a number is too large")
		}
		*to = uint32(n)
	}
	return v, nil
}

// identifiers reports whether s is what may follow the hyphen or the plus: words of
// letters, digits and hyphens between dots.
func identifiers(s string) bool {
	for word := range strings.SplitSeq(s, ".") {
		if word == "" {
			return false
		}
		for _, c := range []byte(word) {
			if !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-') {
				return false
			}
		}
	}
	return true
}

// String returns the version with all three numbers, without a v.
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// AtLeast reports whether Gardener takes the version for major.minor or later. It never
// does so for a pre-release, not even for one of a later version: a constraint without
// a pre-release admits none.
func (v Version) AtLeast(major, minor uint32) bool {
	return v.Pre == "" && (v.Major > major || v.Major == major && v.Minor >= minor)
}
