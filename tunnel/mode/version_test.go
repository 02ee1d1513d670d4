package mode

import (
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct {
		in      string
		want    Version
		atLeast bool // 1.18, as Gardener's own comparison answered for each of these
	}{
		{"1.17.9", Version{1, 17, 9, ""}, false},
		{"1.17.99-rc.1", Version{1, 17, 99, "rc.1"}, false},
		{"1.18", Version{1, 18, 0, ""}, true},
		{"v1.18", Version{1, 18, 0, ""}, true},
		{"1.18.0", Version{1, 18, 0, ""}, true},
		{"v1.18.0-alpha.1", Version{1, 18, 0, "alpha.1"}, false},
		{"1.18.0-rc.1", Version{1, 18, 0, "rc.1"}, false},
		{"1.19.0-rc.1", Version{1, 19, 0, "rc.1"}, false},
		{"1.30.0-beta.0", Version{1, 30, 0, "beta.0"}, false},
		{"1.18.9-eks-d1db3c", Version{1, 18, 9, "eks-d1db3c"}, false},
		{"1.18.0+k3s1", Version{1, 18, 0, ""}, true},
		{"1.18.0-rc.1+x", Version{1, 18, 0, "rc.1"}, false},
		{"1.18.0+build-7.x", Version{1, 18, 0, ""}, true},
		{"1.18+", Version{1, 18, 0, ""}, true}, // ours: Gardener refuses it
		{"1.17+", Version{1, 17, 0, ""}, false},
		{"1", Version{1, 0, 0, ""}, false},
		{"2", Version{2, 0, 0, ""}, true},
		{"v1.018", Version{1, 18, 0, ""}, true},
		{"0.99", Version{0, 99, 0, ""}, false},
	} {
		got, err := ParseVersion(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("%q: %+v, %v; want %+v", tt.in, got, err, tt.want)
		}
		if got.AtLeast(1, 18) != tt.atLeast {
			t.Errorf("%q is at least 1.18: %v, want %v", tt.in, !tt.atLeast, tt.atLeast)
		}
	}
}

func TestParseVersionErrors(t *testing.T) {
	for _, in := range []string{
		"", "v", "V1.18", " 1.18", "1.18 ", "1.18.", "1..18", ".18", "1.18.0.1", "1.x", "latest", "-1.18", "+1.18",
		"1.18-", "1.18.0-rc..1", "1.18.0-rc_1", "1.18.0+a..b", "1.18.0+a+b", "1.4294967296", "1.99999999999999999999", "１.18",
		strings.Repeat("9", 1000),
	} {
		got, err := ParseVersion(in)
		if err == nil {
			t.Errorf("%q: %+v, want an error", in, got)
		} else if len(err.Error()) > 200 {
			t.Errorf("%.20q…: an error of %d bytes", in, len(err.Error()))
		}
		if got != (Version{}) {
			t.Errorf("%q: %+v beside an error", in, got)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"1.17.9", "v1.18.0-alpha.1", "1.18+", "1.21.5-vendor.3+x.y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVersion(s)
		if err != nil {
			return
		}
		// What is printed is read as the same.
		if again, err := ParseVersion(v.String()); err != nil || again != v {
			t.Errorf("%q is %+v, printed %q is %+v, %v", s, v, v, again, err)
		}
		if v.Pre != "" && v.AtLeast(0, 0) {
			t.Errorf("%q: a pre-release is at least something", s)
		}
	})
}
