package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/server/egressselector"
	"sigs.k8s.io/yaml"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// verdict is an entry of egress/testdata/verdicts.yaml, whose head says what
// the fields mean.
type verdict struct {
	Name     string   `json:"name"`
	Config   string   `json:"config"`
	Verdict  string   `json:"verdict"`
	Reason   []string `json:"reason"`
	Errors   []string `json:"errors"`
	Warnings []string `json:"warnings"`
	Refused  bool     `json:"refused"`
}

// TestVerdicts gives every configuration of the table that the tests of package
// egress hold Validate against to kube-apiserver's own code, which has to come
// to the verdict that is recorded there.
func TestVerdicts(t *testing.T) {
	table, err := os.ReadFile(filepath.Join("..", "..", "egress", "testdata", "verdicts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var verdicts []verdict
	if err := yaml.UnmarshalStrict(table, &verdicts); err != nil {
		t.Fatal(err)
	}
	if len(verdicts) == 0 {
		t.Fatal("the table is empty")
	}
	dir := certDir(t)
	for _, v := range verdicts {
		t.Run(v.Name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "egress.yaml")
			if err := os.WriteFile(file, []byte(strings.ReplaceAll(v.Config, "$DIR", dir)), 0o600); err != nil {
				t.Fatal(err)
			}
			got, reason := judge(file)
			if got != v.Verdict {
				t.Errorf("kube-apiserver: %s (%s), the table says %q", got, reason, v.Verdict)
			}
			switch v.Verdict {
			case "validate":
				if diff := cmp.Diff(v.Reason, reason); diff != "" {
					t.Errorf("reason of kube-apiserver (- table, + real):\n%s", diff)
				}
			case "decode", "start", "panic":
				for _, want := range v.Reason {
					want = strings.ReplaceAll(want, "$DIR", dir)
					if !strings.Contains(fmt.Sprint(reason), want) {
						t.Errorf("reason of kube-apiserver:\n%s\nthe table has %q", reason, want)
					}
				}
			}
			// And package egress agrees with it, but for what it says it refuses.
			if v.Refused {
				got = "decode"
			}
			if ours := judgeOurs(t, file); ours != got {
				t.Errorf("package egress: %s, kube-apiserver: %s (%s)", ours, got, reason)
			}
		})
	}
}

// judge does what kube-apiserver does with a file at its start and says how far
// it gets, in the words of the table.
func judge(file string) (verdict string, reason []string) {
	config, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		return "decode", []string{err.Error()}
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(config); len(errs) > 0 {
		for _, e := range errs {
			reason = append(reason, kind(e))
		}
		return "validate", reason
	}
	defer func() {
		if p := recover(); p != nil {
			verdict, reason = "panic", []string{fmt.Sprint(p)}
		}
	}()
	if _, err := egressselector.NewEgressSelector(config); err != nil {
		return "start", []string{err.Error()}
	}
	return "ok", nil
}

// kind is an error in the form of the table, "path: kind".
func kind(e *field.Error) string { return e.Field + ": " + e.Type.String() }

// judgeOurs is judge by package egress.
func judgeOurs(t *testing.T, file string) string {
	config, err := egress.Load(file)
	if err != nil {
		return "decode"
	}
	report := config.Validate()
	if (report.Err() == nil) != (len(report.Errors) == 0) {
		t.Errorf("Report.Err is %v with %d errors", report.Err(), len(report.Errors))
	}
	if len(report.Errors) == 0 {
		return "ok"
	}
	return string(report.Errors[0].Phase) // they come in kube-apiserver's order
}

// certDir makes the files that $DIR of the table stands for.
func certDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ca := must(tunneltest.NewCA("egress"))
	must(ca.WriteFile(dir, "ca"))
	for _, name := range []string{"tls", "other"} {
		cert := must(ca.Issue(tunneltest.CertOptions{CommonName: name, Client: true}))
		if _, _, err := cert.WriteFiles(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "empty.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestGenerate gives what egress.Generate writes to kube-apiserver's own code,
// for each combination of options. The code of one version has to stand in for
// all: the format has only gained one field, tlsServerName in 1.36, since 1.18.
func TestGenerate(t *testing.T) {
	dir := certDir(t)
	minors := []int{0} // no version given
	for minor := 18; minor <= 40; minor++ {
		minors = append(minors, minor)
	}
	for _, minor := range minors {
		version := ""
		if minor > 0 {
			version = fmt.Sprintf([]string{"1.%d", "v1.%d.3"}[minor%2], minor)
		}
		for _, mode := range []egress.Mode{"", egress.ProxyServer, egress.Konnectivity, egress.ReversedVPN} {
			for _, apiVersion := range []string{"", egress.V1Alpha1, egress.V1Beta1} {
				for _, way := range []string{"tcp", "tcp+name", "uds"} {
					for _, controlPlane := range []bool{false, true} {
						o := &egress.Options{Mode: mode, KubernetesVersion: version, APIVersion: apiVersion, ControlPlane: controlPlane}
						switch way {
						case "uds":
							o.UDSName = filepath.Join(dir, "proxy.sock")
						case "tcp+name":
							if minor > 0 && minor < 36 {
								continue // Generate refuses it, as its own tests show
							}
							o.TLSServerName = server("alpha")
							fallthrough
						default:
							o.CABundle, o.ClientCert, o.ClientKey = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
						}
						checkGenerated(t, o, minor > 0 && minor < 20)
					}
				}
			}
		}
	}
}

func checkGenerated(t *testing.T, o *egress.Options, master bool) {
	t.Helper()
	config, err := egress.Generate(o)
	if err != nil {
		t.Errorf("Generate(%+v): %v", o, err)
		return
	}
	text := config.YAML()
	file := filepath.Join(t.TempDir(), "egress.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, reason := judge(file); got != "ok" {
		t.Errorf("Generate(%+v) wrote\n%skube-apiserver: %s %v", o, text, got, reason)
	}
	if ours := judgeOurs(t, file); ours != "ok" {
		t.Errorf("Generate(%+v) wrote\n%spackage egress: %s", o, text, ours)
	}
	if got := strings.Contains(string(text), "name: master"); got != master {
		t.Errorf("Generate(%+v) wrote\n%sname: master is there: %v, want %v", o, text, got, master)
	}
	if got := strings.Contains(string(text), "tlsServerName"); got != (o.TLSServerName != "") {
		t.Errorf("Generate(%+v) wrote\n%swith tlsServerName: %v", o, text, got)
	}
}
