package egress_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

func ExampleParse() {
	config, err := egress.Parse([]byte(`
apiVersion: apiserver.k8s.io/v1alpha1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: httpConnect
    transport:
      tcp:
        url: https://proxy-server:9443
`))
	if err != nil {
		log.Fatal(err)
	}
	report := config.Validate()
	for _, p := range report.Errors {
		fmt.Println(p.Field)
		fmt.Println("   is wrong:", p.Detail)
		fmt.Println("   do this: ", p.Fix)
	}
	// Output:
	// egressSelections[0].connection.proxyProtocol
	//    is wrong: case counts for kube-apiserver
	//    do this:  write HTTPConnect
	// egressSelections[0].connection.transport.tcp.tlsConfig
	//    is wrong: missing: kube-apiserver wants a client certificate for https://
	//    do this:  add clientCert and clientKey, and caBundle unless the host trusts the proxy's authority
}

func ExampleParse_unknownField() {
	_, err := egress.Parse([]byte(`
apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    ProxyProtocol: HTTPConnect
    timeout: 30s
`))
	fmt.Println(err)
	// Output:
	// egress: egressSelections[0].connection.ProxyProtocol: unknown field; write proxyProtocol
	// egressSelections[0].connection.timeout: unknown field; there are proxyProtocol, transport
}

// A Selector dials as the kube-apiserver with this file would. The proxy here
// is a connect.Handler on a Unix socket.
func ExampleSelector() {
	dir, err := os.MkdirTemp("", "egress")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := dir + "/proxy.sock"
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&connect.Handler{Dial: dialKubelet}).Serve(ctx, listener)
	}()

	selector := &egress.Selector{
		Config: &egress.Config{EgressSelections: []egress.Egress{{
			Name: "cluster",
			Connection: egress.Connection{
				ProxyProtocol: egress.HTTPConnect,
				Transport:     &egress.Transport{UDS: &egress.UDS{UDSName: socket}},
			},
		}}},
		Observe: func(e egress.Event) {
			fmt.Println("dial", e.Type, e.Protocol, "over", e.Transport, "to", e.Target)
		},
	}
	conn, err := selector.Dialer(egress.Cluster)(ctx, "tcp", "10.0.0.7:10250")
	if err != nil {
		log.Fatal(err)
	}
	line, _ := bufio.NewReader(conn).ReadString('\n')
	fmt.Print(line)
	conn.Close()

	_, selected := selector.Lookup(egress.Etcd)
	fmt.Println("etcd goes through a proxy:", selected)
	cancel()
	<-done
	// Output:
	// dial start http_connect over uds to 10.0.0.7:10250
	// dial done http_connect over uds to 10.0.0.7:10250
	// hello from the kubelet
	// etcd goes through a proxy: false
}

// dialKubelet stands for the shoot.
func dialKubelet(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		fmt.Fprintln(theirs, "hello from the kubelet")
		theirs.Close()
	}()
	return ours, nil
}

func ExampleGenerate() {
	config, err := egress.Generate(&egress.Options{
		Mode:              egress.Konnectivity,
		KubernetesVersion: "1.31",
	})
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(config.YAML())
	// Output:
	// apiVersion: apiserver.k8s.io/v1beta1
	// kind: EgressSelectorConfiguration
	// egressSelections:
	// - name: cluster
	//   connection:
	//     proxyProtocol: HTTPConnect
	//     transport:
	//       tcp:
	//         url: https://konnectivity-server:9443
	//         tlsConfig:
	//           caBundle: /srv/kubernetes/ca/ca.crt
	//           clientCert: /etc/srv/kubernetes/konnectivity-server-client-tls/tls.crt
	//           clientKey: /etc/srv/kubernetes/konnectivity-server-client-tls/tls.key
	// - name: controlplane
	//   connection:
	//     proxyProtocol: Direct
	// - name: etcd
	//   connection:
	//     proxyProtocol: Direct
}

// Without high availability kube-apiserver enters the packet tunnel by the HTTP
// proxy beside vpn-server.
func ExampleGenerate_vpnServer() {
	config, err := egress.Generate(&egress.Options{
		Mode:       egress.VPNServer,
		CABundle:   "/srv/kubernetes/ca-vpn/ca.crt",
		ClientCert: "/srv/kubernetes/vpn-client/tls.crt",
		ClientKey:  "/srv/kubernetes/vpn-client/tls.key",
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(config.EgressSelections[0].Connection.Transport.TCP.URL)
	// Output:
	// https://vpn-server:9443
}

// Below Kubernetes 1.36 there is no tlsServerName, and the error says what
// else selects the cluster.
func ExampleGenerate_version() {
	_, err := egress.Generate(&egress.Options{
		Mode:              egress.ReversedVPN,
		KubernetesVersion: "1.35",
		TLSServerName:     "shoot--dev--a",
	})
	fmt.Println(err)
	// Output:
	// egress: TLSServerName: kube-apiserver 1.35 refuses tlsServerName, which begins with 1.36; use a host name per cluster in URL, or a client certificate that names the cluster
}
