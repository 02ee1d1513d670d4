package intercept

import (
	"context"
	"net/netip"
	"strings"
	"testing"
)

// TestBadAddr has addresses that no host can have for itself alone.
func TestBadAddr(t *testing.T) {
	for s, want := range map[string]string{
		"127.0.0.1":           "a loopback address",
		"::1":                 "a loopback address",
		"::ffff:127.1.2.3":    "a loopback address",
		"0.0.0.0":             "unspecified",
		"::":                  "unspecified",
		"224.0.0.1":           "for many hosts",
		"255.255.255.255":     "for many hosts",
		"ff02::1":             "for many hosts",
		"fe80::1":             "an IPv6 link-local address",
		"fd00::1%e0":          "with a zone",
		"::ffff:169.254.20.1": "",
		"64:ff9b:1::1":        "",
		"240.0.0.1":           "",
	} {
		err := checkAddr(netip.MustParseAddr(s).Unmap())
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasSuffix(err.Error(), "which is "+want)) {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
	}
	a := &LocalAddr{}
	err := a.Run(context.Background())
	if err == nil || err.Error() != "intercept: LocalAddr without an address" || a.Ready() == nil || a.Close() != nil {
		t.Errorf("without an address: %v", err)
	}
}
