#!/bin/sh
# Make the Secrets that the files beside this one name, with random contents, in kubectl's current namespace. What exists stays.
# No value is ever on a command line.
set -eu

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# $1: its name. Standard input: lines `key: value`.
secret() {
    if kubectl get secret "$1" --output name >/dev/null 2>&1; then
        echo "secret/$1 exists"
    else
        { printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\nstringData:\n' "$1" && sed 's/^/  /'; } | kubectl create -f -
    fi
}

database="postgresql+psycopg2://simlap:$(random)@postgres/mlflow"
password=${database#*simlap:}
password=${password%@*}

secret simlap-ray-token <<EOF
auth_token: "$(random)"
EOF

secret simlap-redis <<EOF
password: "$(random)"
EOF

# another PostgreSQL: its address twice, as backend-store-uri and in auth.ini
secret simlap-mlflow <<EOF
username: simlap
password: "$(random)"
flask-secret-key: "$(random)"
postgres-password: "$password"
backend-store-uri: $database
auth.ini: |
  [mlflow]
  default_permission = READ
  database_uri = $database
  authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
