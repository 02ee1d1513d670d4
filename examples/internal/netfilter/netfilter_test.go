package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// A set of the kernel takes no interval twice and none within another.
func Example_intervals() {
	for _, in := range intervals([]netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"),
		netip.MustParsePrefix("fd00::/8"),
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("11.0.0.0/8"),
		netip.MustParsePrefix("240.0.0.0/4"),
	}, false) {
		fmt.Println(in.first, in.end)
	}
	// Output:
	// 10.0.0.0 12.0.0.0
	// 240.0.0.0 invalid IP
}

func TestIntervals(t *testing.T) {
	for _, tc := range []struct {
		networks, want string
		v6             bool
	}{
		{"", "", false},
		{"10.0.0.0/8", "", true},
		{"0.0.0.0/0 10.0.0.0/8", "0.0.0.0-invalid IP", false},
		{"10.0.0.0/32 10.0.0.1/32 10.0.0.3/32", "10.0.0.0-10.0.0.2 10.0.0.3-10.0.0.4", false},
		{"10.0.0.0/9 10.128.0.0/9 10.0.0.0/9", "10.0.0.0-11.0.0.0", false},
		{"::/0", "::-invalid IP", true},
		{"fd00:1::/32 fd00::/16 fe00::/8 10.0.0.0/8", "fd00::-fd01:: fe00::-ff00::", true},
	} {
		var networks []netip.Prefix
		for _, s := range strings.Fields(tc.networks) {
			networks = append(networks, netip.MustParsePrefix(s))
		}
		var got []string
		for _, in := range intervals(networks, tc.v6) {
			got = append(got, fmt.Sprint(in.first, "-", in.end))
		}
		if got := strings.Join(got, " "); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.networks, got, tc.want)
		}
	}
}

func TestRefused(t *testing.T) {
	good := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for want, up := range map[string]func() error{
		`"" is not the name`:                     (&Firewall{}).Up,
		`"../x" is not the name`:                 (&Firewall{Device: "../x"}).Up,
		`"0123456789abcdef" is not the name`:     (&Masquerade{Device: "0123456789abcdef", Networks: good}).Up,
		"needs networks":                         (&Masquerade{Device: "tun0"}).Up,
		"10.1.2.3/8, which is not a network":     (&Masquerade{Device: "tun0", Networks: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}}).Up,
		"invalid Prefix, which is not a network": (&Masquerade{Device: "tun0", Networks: []netip.Prefix{{}}}).Up,
	} {
		if err := up(); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "netfilter: ") {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	for _, c := range []interface{ Close() error }{new(Firewall), new(Masquerade)} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOtherSystems(t *testing.T) {
	if runtime.GOOS == "linux" {
		return
	}
	for _, err := range []error{(&Firewall{Device: "tun0"}).Up(), Forward(nil, nil)} {
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), runtime.GOOS) {
			t.Errorf("error %v", err)
		}
	}
}

// tree makes files as /proc/sys/net has them.
func tree(t *testing.T, values map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, value := range values {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestForward(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")
	before := map[string]string{
		"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0",
		"ipv6/conf/all/accept_ra": "1", "ipv6/conf/default/accept_ra": "1", "ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0", "ipv6/conf/eth2/accept_ra": "2",
	}
	for name, tc := range map[string]struct {
		networks []netip.Prefix
		changed  map[string]string
	}{
		"none": {nil, nil},
		"IPv4": {[]netip.Prefix{v4}, map[string]string{"ipv4/ip_forward": "1"}},
		"IPv6": {[]netip.Prefix{v6}, map[string]string{"ipv6/conf/all/forwarding": "1",
			"ipv6/conf/all/accept_ra": "2", "ipv6/conf/default/accept_ra": "2", "ipv6/conf/eth0/accept_ra": "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, before)
			var log bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&log, nil))
			for range 2 { // the second time there is nothing to do
				if err := forward(root, tc.networks, logger); err != nil {
					t.Fatal(err)
				}
			}
			for name, was := range before {
				want, changes := tc.changed[name]
				if !changes {
					want = was
				}
				if got, err := readSysctl(root, name); err != nil || got != want {
					t.Errorf("%s is %s, %v, want %s", name, got, err, want)
				}
				line := "name=net." + strings.ReplaceAll(name, "/", ".") + " value=" + want + " before=" + was
				if changes != strings.Contains(log.String(), line) {
					t.Errorf("in the log: %v", !changes)
				}
			}
			if n := strings.Count(log.String(), "\n"); n != len(tc.changed) {
				t.Errorf("%d lines:\n%s", n, &log)
			}
		})
	}
}

// TestForwardIsReadOnly: what is set already needs no right, and what cannot be set
// is named with the remedy.
func TestForwardIsReadOnly(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")
	set := tree(t, map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "1"})
	if err := forward(set, []netip.Prefix{v4, v6}, quiet); err != nil {
		t.Error(err)
	}
	if got, _ := readSysctl(set, "ipv6/conf/eth0/accept_ra"); got != "1" {
		t.Errorf("accept_ra is %s", got)
	}
	if err := forward(t.TempDir(), []netip.Prefix{v6}, quiet); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "no IPv6") {
		t.Errorf("error %v", err)
	}
	if err := forward(t.TempDir(), []netip.Prefix{v4}, quiet); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "net.ipv4.ip_forward") {
		t.Errorf("error %v", err)
	}
	// A file that not even root may write to.
	if _, err := os.Stat("/proc/sys/kernel/osrelease"); err != nil {
		return
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "ipv4"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/sys/kernel/osrelease", filepath.Join(root, "ipv4/ip_forward")); err != nil {
		t.Fatal(err)
	}
	if err := forward(root, []netip.Prefix{v4}, quiet); err == nil || !slices.ContainsFunc([]string{"is needed and cannot be set here"}, func(s string) bool { return strings.Contains(err.Error(), s) }) {
		t.Errorf("error %v", err)
	}
}
