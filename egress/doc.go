// Package egress reads, judges, writes and uses EgressSelectorConfiguration,
// the file that tells a kube-apiserver through which proxy it reaches nodes,
// pods and services (flag --egress-selector-config-file).
//
// # Use one
//
// A program next to the kube-apiserver can take the same way:
//
//	config, err := egress.Load("egress-selector-configuration.yaml")
//	if err != nil {
//		return err
//	}
//	selector := &egress.Selector{Config: config}
//	transport := &http.Transport{DialContext: selector.Dialer(egress.Cluster)}
//
// Each dial is a new connection to the proxy with one CONNECT, as
// kube-apiserver does it, over https with client certificates, plain http or a
// Unix socket. Certificates are read again when their files change. A
// selection that the file does not name is dialled directly. [Selector]
// reports each dial to a hook, with the labels of kube-apiserver's metrics.
//
// # Check one
//
//	report := config.Validate()
//	for _, p := range report.Errors {
//		fmt.Println(p) // egressSelections[0].connection.proxyProtocol: "httpConnect": case counts …
//	}
//
// [Parse] is as strict as kube-apiserver about form: unknown and duplicate
// fields are errors. [Config.Validate] is as strict about content, and finds
// as well what makes a kube-apiserver fail after its own validation, such as a
// key of another certificate, or panic, as plain http:// does. [Selector] is
// lenient: what leaves no doubt is dialled.
//
// # Write one
//
//	config, err := egress.Generate(&egress.Options{
//		Mode:              egress.Konnectivity,
//		KubernetesVersion: "1.31",
//	})
//	os.Stdout.Write(config.YAML())
//
// # The selections
//
// [Cluster] carries what users notice: logs, exec, attach, port-forward and the
// proxy subresources. [ControlPlane] carries calls of admission webhooks and
// aggregated API servers; where those run in the cluster it needs the same way
// (Options.ControlPlane). [Etcd] carries the store and is direct.
//
// # Differences from kube-apiserver
//
// These are meant to be none for a file that kube-apiserver accepts, but for:
// GRPC is not supported (an error at the dial). The TLS handshake offers ALPN
// http/1.1 and the CONNECT names the target in its Host field, where
// kube-apiserver offers nothing and always writes 127.0.0.1. Any 2xx answer
// opens the tunnel, and bytes that come along with it are kept, which
// kube-apiserver takes for an error. The context governs the wait for the
// proxy's answer, too, and Selector.Timeout bounds it. A URL without a port
// means 443 or 80. The internal version of the format, which nobody writes,
// is refused.
//
// # What it does not do
//
// It does not follow the configuration file itself (neither does
// kube-apiserver): make a new Selector. It keeps no connections for later
// dials, and tries no second proxy.
package egress
